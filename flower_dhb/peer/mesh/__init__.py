"""What the operator of a mesh makes and asks: files, certificates, the fleet."""
