"""The explorer's pictures: made once and kept by the digest of what they depend on."""
