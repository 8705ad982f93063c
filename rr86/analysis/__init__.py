"""What a recording shows when it is looked at as a whole: timelines and profiles."""
