"""Sharp footage made into pairs of blurry and sharp clips."""
