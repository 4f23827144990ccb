package volume

import (
	"fmt"
	"time"
)

// script is a short life of a volume.
type script struct {
	name string
	base func(p *player) // before the mount: what the bucket has
	run  func(p *player)
	// mess: others write to the bucket meanwhile. Then names are not foreseen, but all content is found.
	mess bool
	// tight: the disk is so small that a program may hear of it.
	tight bool
}

// files is the bucket of most scripts.
func files(p *player) {
	p.object("clean", 5000)
	p.object("other", 300)
	p.object("d/x", 100)
	p.object("d/y", 4100)
}

// scripts has one for each kind of call and for the combinations that are worth it.
var scripts = []script{
	{name: "create, write, fsync", run: func(p *player) {
		p.create("a")
		p.write("a", 0, 5000)
		p.fsync("a")
		p.write("a", 4000, 3000)
		p.fsync("a")
		p.drain()
	}},
	{name: "overwrite a clean range", base: files, run: func(p *player) {
		p.read("clean")
		p.write("clean", 1000, 2000)
		p.fsync("clean")
		p.read("clean")
		p.drain()
	}},
	{name: "overwrite what is not here", base: files, run: func(p *player) {
		p.write("clean", 100, 50)
		p.read("clean")
		p.write("d/y", 4000, 200)
		p.drain()
		p.read("d/y")
	}},
	{name: "overwrite a dirty range", run: func(p *player) {
		p.create("a")
		p.write("a", 0, 9000)
		p.write("a", 100, 100)
		p.fsync("a")
		p.write("a", 200, 5000)
		p.fsync("a")
		p.drain()
	}},
	{name: "append", base: files, run: func(p *player) {
		p.write("clean", 5000, 300)
		p.write("clean", 5300, 300)
		p.fsync("clean")
		p.write("clean", 5600, 9000)
		p.drain()
	}},
	{name: "truncate down", base: files, run: func(p *player) {
		p.truncate("clean", 1234)
		p.fsync("clean")
		p.read("clean")
		p.truncate("clean", 0)
		p.drain()
	}},
	{name: "truncate up", base: files, run: func(p *player) {
		p.truncate("clean", 9000)
		p.fsync("clean")
		p.read("clean")
		p.drain()
	}},
	{name: "truncate down and up", base: files, run: func(p *player) {
		p.read("clean")
		p.truncate("clean", 1000)
		p.truncate("clean", 4000)
		p.read("clean")
		p.fsync("clean")
		p.drain()
	}},
	{name: "write behind a hole", run: func(p *player) {
		p.create("a")
		p.write("a", 20000, 100)
		p.fsync("a")
		p.read("a")
		p.drain()
	}},
	{name: "rename over an existing file", base: files, run: func(p *player) {
		p.create("tmp")
		p.write("tmp", 0, 3000)
		p.rename("tmp", "clean")
		p.fsyncDir(".")
		p.drain()
	}},
	{name: "save as editors do", base: files, run: func(p *player) {
		p.create("tmp")
		p.write("tmp", 0, 3000)
		p.fsync("tmp")
		p.rename("clean", "clean~")
		p.rename("tmp", "clean")
		p.unlink("clean~")
		p.drain()
	}},
	{name: "rename a file", base: files, run: func(p *player) {
		p.rename("clean", "d/moved")
		p.fsyncDir("d")
		p.read("d/moved")
		p.drain()
		p.rename("d/moved", "clean")
		p.drain()
	}},
	{name: "rename a dirty file twice", base: files, run: func(p *player) {
		p.write("clean", 0, 10)
		p.rename("clean", "b")
		p.rename("b", "c")
		p.write("c", 10, 10)
		p.drain()
	}},
	{name: "rename a directory", base: files, run: func(p *player) {
		p.rename("d", "e")
		p.fsyncDir(".")
		p.list("e")
		p.drain()
		p.list("e")
		p.read("e/x")
	}},
	{name: "rename a directory, then write below", base: files, run: func(p *player) {
		p.rename("d", "e")
		p.write("e/x", 50, 100)
		p.create("e/new")
		p.write("e/new", 0, 10)
		p.unlink("e/y")
		p.drain()
		p.list("e")
	}},
	{name: "rename a directory over an empty one", base: files, run: func(p *player) {
		p.mkdir("e")
		p.rename("d", "e")
		p.drain()
	}},
	{name: "rename a directory to and fro", base: files, run: func(p *player) {
		p.rename("d", "e")
		p.mkdir("d")
		p.create("d/x")
		p.rename("e", "d/e")
		p.drain()
	}},
	{name: "exchange files", base: files, run: func(p *player) {
		p.write("other", 0, 10)
		p.exchange("clean", "other")
		p.read("clean")
		p.drain()
	}},
	{name: "exchange directories", base: files, run: func(p *player) {
		p.mkdir("e")
		p.create("e/z")
		p.write("e/z", 0, 10)
		p.exchange("d", "e")
		p.drain()
	}},
	{name: "unlink", base: files, run: func(p *player) {
		p.unlink("clean")
		p.fsyncDir(".")
		p.create("clean")
		p.write("clean", 0, 10)
		p.unlink("other")
		p.drain()
	}},
	{name: "short life", run: func(p *player) {
		p.create("a")
		p.write("a", 0, 4000)
		p.unlink("a")
		p.drain()
	}},
	{name: "unlink an open file", base: files, run: func(p *player) {
		p.hold("clean")
		p.unlink("clean")
		p.read("clean")
		p.write("clean", 10, 5000)
		p.read("clean")
		p.drain()
		p.read("clean")
		p.release("clean")
		p.wait(time.Minute)
	}},
	{name: "hard link and write", base: files, run: func(p *player) {
		p.link("clean", "b")
		p.write("b", 100, 100)
		p.fsync("clean")
		p.drain()
		p.write("clean", 0, 50)
		p.drain()
	}},
	{name: "hard link, then unlink the first name", base: files, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 4000)
		p.link("a", "d/b")
		p.unlink("a")
		p.drain()
		p.link("d/b", "c")
		p.drain()
		p.unlink("d/b")
		p.drain()
	}},
	{name: "symbolic link", base: files, run: func(p *player) {
		p.symlink("l", "clean")
		p.fsyncDir(".")
		p.drain()
		p.rename("l", "d/l")
		p.drain()
		p.unlink("d/l")
		p.drain()
	}},
	{name: "fifo", run: func(p *player) {
		p.mkfifo("f")
		p.drain()
		p.chmod("f", 0o644)
		p.drain()
	}},
	{name: "make and remove directories", run: func(p *player) {
		p.mkdir("e")
		p.mkdir("e/f")
		p.fsyncDir("e")
		p.drain()
		p.rmdir("e/f")
		p.drain()
		p.rmdir("e")
		p.drain()
	}},
	{name: "empty a directory and remove it", base: files, run: func(p *player) {
		p.unlink("d/x")
		p.unlink("d/y")
		p.rmdir("d")
		p.drain()
	}},
	{name: "chmod", base: files, run: func(p *player) {
		p.chmod("clean", 0o600)
		p.chmod("d", 0o700)
		p.fsync("clean")
		p.drain()
		p.chmod("clean", 0o640)
		p.write("clean", 0, 10)
		p.drain()
	}},
	{name: "extended attributes", base: files, run: func(p *player) {
		p.setxattr("clean", "one")
		p.drain()
		p.setxattr("clean", "two")
		p.write("clean", 0, 5)
		p.drain()
		p.removexattr("clean")
		p.drain()
	}},
	{name: "tmpfile", run: func(p *player) {
		p.tmpfile("t")
		p.write("t", 0, 5000)
		p.fsync("t")
		p.linkHeld("t", "named")
		p.fsync("t")
		p.release("t")
		p.drain()
	}},
	{name: "tmpfile without a name", run: func(p *player) {
		p.tmpfile("t")
		p.write("t", 0, 5000)
		p.read("t")
		p.release("t")
		p.drain()
	}},
	{name: "fallocate", base: files, run: func(p *player) {
		p.fallocate("clean", 0, 0, 8000)
		p.fallocate("other", keepSize, 0, 8000)
		p.fsync("clean")
		p.drain()
	}},
	{name: "punch holes", base: files, run: func(p *player) {
		p.fallocate("clean", punchHole, 1000, 2000)
		p.read("clean")
		p.write("clean", 1500, 100)
		p.fallocate("clean", punchHole, 4500, 5000)
		p.fsync("clean")
		p.drain()
	}},
	{name: "zero ranges", base: files, run: func(p *player) {
		p.fallocate("clean", zeroRange, 4000, 3000)
		p.fallocate("other", zeroRange|keepSize, 100, 3000)
		p.fsync("other")
		p.drain()
	}},
	{name: "copy a range", base: files, run: func(p *player) {
		p.copyRange("clean", 100, 3000, "other", 200)
		p.fsync("other")
		p.drain()
	}},
	{name: "multipart upload", run: func(p *player) {
		p.create("big")
		for i := range 6 {
			p.write("big", i*10000, 10000)
		}
		p.fsync("big")
		p.drain()
		p.evict()
		p.read("big")
	}},
	{name: "partial update with copied parts", base: func(p *player) { p.object("big", 60000) }, run: func(p *player) {
		p.write("big", 20000, 100)
		p.fsync("big")
		p.drain()
		p.write("big", 60000, 100)
		p.drain()
		p.read("big")
	}},
	{name: "multipart upload that changes under way", run: func(p *player) {
		p.create("big")
		p.write("big", 0, 50000)
		p.fsync("big")
		p.urge()
		p.write("big", 10000, 10000)
		p.drain()
		p.truncate("big", 40000)
		p.drain()
	}},
	{name: "multipart upload that is not needed any more", run: func(p *player) {
		p.create("big")
		p.write("big", 0, 60000)
		p.urge()
		p.unlink("big")
		p.drain()
	}},
	{name: "rename a large object", base: func(p *player) { p.object("big", 100000) }, run: func(p *player) {
		p.rename("big", "large")
		p.drain()
		p.chmod("large", 0o600)
		p.drain()
	}},
	{name: "spill", tight: true, base: func(p *player) { p.disk.SetCapacity(1 << 20) }, run: func(p *player) {
		p.create("big")
		for i := range 20 {
			p.write("big", i*40000, 40000)
		}
		p.fsync("big")
		p.drain()
		p.read("big")
	}},
	{name: "checkpoint", base: files, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 5000)
		p.rename("clean", "b")
		p.checkpoint()
		p.write("a", 100, 5000)
		p.rename("a", "b")
		p.checkpoint()
		p.drain()
		p.checkpoint()
	}},
	{name: "reap", base: files, run: func(p *player) {
		p.read("clean")
		p.create("a")
		p.write("a", 0, 5000)
		p.truncate("a", 100)
		p.reap()
		p.unlink("a")
		p.unlink("clean")
		p.reap()
		p.drain()
		p.reap()
	}},
	{name: "evict and fetch again", base: files, run: func(p *player) {
		p.read("clean")
		p.write("clean", 0, 1000)
		p.evict()
		p.read("clean")
		p.drain()
		p.evict()
		p.read("clean")
	}},
	{name: "read what is remote", base: files, run: func(p *player) {
		p.list(".")
		p.read("clean")
		p.list("d")
		p.read("d/x")
		p.read("d/y")
		p.read("clean")
	}},
	{name: "list", base: files, run: func(p *player) {
		p.list(".")
		p.list("d")
		p.create("d/new")
		p.unlink("d/x")
		p.list("d")
		p.wait(2 * time.Minute)
		p.list("d")
		p.drain()
		p.list("d")
	}},
	{name: "many files", run: func(p *player) {
		for i := range 6 {
			name := fmt.Sprintf("f%d", i)
			p.create(name)
			p.write(name, 0, 100*i+1)
		}
		p.fsync("f3")
		p.drain()
	}},
	{name: "background work", base: func(p *player) {
		files(p)
		p.spec.Options.Settle = time.Second
	}, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 3000)
		p.write("clean", 0, 100)
		p.wait(10 * time.Second)
		p.write("a", 0, 4000)
		p.wait(30 * time.Second)
		p.unlink("a")
		p.wait(time.Minute)
	}},
	{name: "close and open again", base: files, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 3000)
		p.rename("d", "e")
		p.reopen()
		p.write("a", 1000, 3000)
		p.write("e/x", 0, 10)
		p.fsync("a")
		p.reopen()
		p.drain()
		p.reopen()
		p.read("a")
	}},
	{name: "killed and opened again", base: files, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 40000)
		p.urge()
		p.unlink("clean")
		p.kill()
		p.read("a")
		p.write("a", 39000, 3000)
		p.kill()
		p.drain()
	}},
	{name: "fsync into the bucket", base: func(p *player) {
		files(p)
		p.spec.Options.Fsync = "bucket"
	}, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 3000)
		p.fsync("a")
		p.write("clean", 100, 100)
		p.fsync("clean")
		p.mkdir("e")
		p.fsyncDir(".")
	}},
	{name: "close to open", base: func(p *player) {
		files(p)
		p.spec.Options.Access = "rwx"
	}, run: func(p *player) {
		p.hold("clean")
		p.write("clean", 100, 100)
		p.flush("clean")
		p.release("clean")
		p.wait(5 * time.Second)
		p.hold("clean")
		p.read("clean")
		p.release("clean")
	}},
	{name: "capacity", base: func(p *player) {
		files(p)
		p.spec.Options.Size = 1 << 20
	}, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 3000)
		p.unlink("clean")
		p.drain()
		p.wait(time.Minute)
	}},
	{name: "somebody else's object under a changed file", mess: true, base: files, run: func(p *player) {
		p.write("clean", 0, 5000)
		p.foreign("clean", 77)
		p.drain()
		p.read("clean")
	}},
	{name: "somebody else's object under a new name", mess: true, base: files, run: func(p *player) {
		p.create("a")
		p.write("a", 0, 3000)
		p.foreign("a", 77)
		p.drain()
	}},
	{name: "somebody else's object where a file is renamed to", mess: true, base: files, run: func(p *player) {
		p.rename("other", "b")
		p.foreign("b", 77)
		p.drain()
	}},
	{name: "an object that others deleted", mess: true, base: files, run: func(p *player) {
		p.write("clean", 0, 5000)
		p.vanish("clean")
		p.drain()
	}},
}
