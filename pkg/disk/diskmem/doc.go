// Package diskmem is a disk in memory that can lose power: it keeps, beside what a program sees, what was made durable
// and what was not, and CrashClone makes the disk that a power cut leaves. It is the reference of what package disk
// promises, made unkind: whatever was not synced may be lost, kept, or kept in part, page by page and name by name.
package diskmem
