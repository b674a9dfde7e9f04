"""What stands around the training loop: command line, run folder, pictures, machine, other systems' settings.

They take folders, configs and numbers, never a run (but alone.py, which stands for a cluster); each file says in its
first line which question it answers.
"""
