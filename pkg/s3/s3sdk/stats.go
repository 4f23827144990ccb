package s3sdk

// Stats counts since the first client of an endpoint was made, for all clients that share its connections.
type Stats struct {
	Corrupt  int64 // bodies received whose checksum was wrong, or of which two copies differed
	Compared int64 // bodies asked for twice, since nothing else told whether they are right
	Hedged   int64 // small reads asked for again because the answer was late

	Lookups, Reads, Writes Load
}

// Stats does not wait for requests.
func (c *Client) Stats() Stats { return c.pool.stats() }

func (p *pool) stats() Stats {
	return Stats{
		Corrupt: p.corrupt.Load(), Compared: p.compared.Load(), Hedged: p.pace.count(),
		Lookups: p.limits[lookups].load(), Reads: p.limits[reads].load(), Writes: p.limits[writes].load(),
	}
}
