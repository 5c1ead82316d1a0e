"""What each network is trained for, by the name that recipes use; a file per paper."""
