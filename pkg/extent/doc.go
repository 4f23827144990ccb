// Package extent holds sets of byte ranges: which parts of a file are dirty, clean or fetched. It is pure.
//
// A range is half-open, [Off, End). A Set keeps its ranges ascending, disjoint and apart: two that touch are one.
package extent
