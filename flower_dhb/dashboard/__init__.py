"""What `flower-dhb dashboard` shows: runs and meshes as they are now, on loopback."""
