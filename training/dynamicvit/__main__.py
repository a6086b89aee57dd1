from training.cli import run
from training.dynamicvit.command import main

run(main)
