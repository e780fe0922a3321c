"""What produced a finding."""
