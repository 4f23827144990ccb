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

// Stats returns those of each endpoint that a client is open for, by its URL. Clients that trust different CAs share
// nothing but the sum.
func (t *Transports) Stats() map[string]Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := map[string]Stats{}
	for key, p := range t.pools {
		all[key.endpoint] = all[key.endpoint].plus(p.stats())
	}
	return all
}

func (s Stats) plus(o Stats) Stats {
	return Stats{
		Corrupt: s.Corrupt + o.Corrupt, Compared: s.Compared + o.Compared, Hedged: s.Hedged + o.Hedged,
		Lookups: s.Lookups.plus(o.Lookups), Reads: s.Reads.plus(o.Reads), Writes: s.Writes.plus(o.Writes),
	}
}

func (l Load) plus(o Load) Load {
	return Load{Limit: l.Limit + o.Limit, Busy: l.Busy + o.Busy, Waiting: l.Waiting + o.Waiting, Throttled: l.Throttled + o.Throttled}
}

func (p *pool) stats() Stats {
	return Stats{
		Corrupt: p.corrupt.Load(), Compared: p.compared.Load(), Hedged: p.pace.count(),
		Lookups: p.limits[lookups].load(), Reads: p.limits[reads].load(), Writes: p.limits[writes].load(),
	}
}
