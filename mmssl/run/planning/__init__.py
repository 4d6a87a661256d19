"""What a run will take, before its first step: memory, arithmetic, time and disk."""
