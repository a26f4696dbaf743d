"""What a step does: the unit that is uploaded and runs in every container."""
