module github.com/csi-s3/csi-s3/test/sim

go 1.26.0
