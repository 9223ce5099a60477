"""What the scripts of failures are made of: functions that need torch alone, pasted by `scripts` as they stand here."""
