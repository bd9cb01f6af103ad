"""What the explorer's pages are made from: the scan, its network, their addresses and pictures."""
