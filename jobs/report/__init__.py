"""What a person reads after a run: report.html."""
