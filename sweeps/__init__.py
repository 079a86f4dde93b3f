"""Many experiments: declare a study, plan it, launch it, follow it, search a space."""
