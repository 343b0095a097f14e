"""What only a GPU shows: right results on the device, memory against its plan, and speed."""
