"""``python -I -B -m capsuled.sandbox``: one worker. Standard input is its launch order; it takes no arguments."""

from capsuled.sandbox.worker import main

if __name__ == "__main__":
    main()
