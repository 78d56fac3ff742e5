module one-node/pause

go 1.26
