"""What others have published, as schedules of this project: one file a method, beside which `compare` puts ours."""
