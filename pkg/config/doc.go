// Package config holds the process flags and the volume parameters as plain structs: defaults, units, validation. It
// is read by cmd, driver, provision and volume; packages below volume have Options of their own.
//
// What comes from users is parsed here, once, and strictly:
//
//   - ParseSecret: the Secret of a StorageClass or PV. Its credentials are of type Hidden, which never prints.
//   - ParseParameters: the parameters of a StorageClass, and which volume they ask for.
//   - ParseAttributes: the volumeAttributes of a PV, ours or of yandex-cloud/k8s-csi-s3.
//   - ParseVolumeID: volumeHandle, BUCKET or BUCKET/PREFIX.
//   - ParseMount: mount options; ParseGeesefs translates the flags of geesefs to them.
//   - ProcessFlags: the flags of csi-s3 driver.
//
// Every error names the field and what it may be, and none holds the value of a credential.
package config
