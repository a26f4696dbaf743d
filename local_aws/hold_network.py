"""Bring up the loopback device of this process's network, say "ready" and hold the network until this process is killed.

Run in a network namespace of its own: unshare --net python3 -m local_aws.hold_network.
"""

import signal

from local_aws.enter_container import raise_loopback


def main() -> None:
    raise_loopback()
    print("ready", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
