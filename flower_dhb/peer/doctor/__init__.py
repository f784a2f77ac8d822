"""What keeps a device from taking part, found before it is out in the field."""
