"""What methods share: the protocol, the registry, attaching, compositions, folding."""
