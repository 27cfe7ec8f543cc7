"""Everything that is asked of a Trainer; the only home of Lightning's private parts."""
