module github.com/csi-s3/csi-s3

go 1.26
