package config

import (
	"os"
	"time"
)

// Mount is the options of one mount: one vocabulary for -o, mountOptions of StorageClass and PV, and (translated) the
// geesefs flags in parameters.options. See ParseMount for the names.
type Mount struct {
	Access     string        // rwo, rwx or rox
	Fsync      string        // node or bucket
	Conflict   string        // keep-both or overwrite
	Takeover   string        // manual or after-ttl
	Exclusive  bool          // nobody else writes to the volume: metadata never expires
	Immutable  bool          // nothing ever changes
	ReadOnly   bool          // ro
	AllowOther bool          // other users may enter; always with default_permissions
	Size       int64         // capacity in bytes, 0 is unlimited
	Uid, Gid   uint32        // owner of objects that carry no attributes
	FileMode   os.FileMode   // permission bits of such objects
	DirMode    os.FileMode   // permission bits of such directories, and os.ModeSetgid
	Group      uint32        // that pods asked for (fsGroup), which then is Gid too; 0: none. Only CSI sets it
	Settle     time.Duration // how long a closed file rests before its upload
	IOTimeout  time.Duration // how long a read, an fsync or a write to a full cache waits for S3; 0 is for ever
}
