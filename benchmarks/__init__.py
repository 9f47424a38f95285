"""The benchmarks: each measures rmlaunch beside a peer, in the same run."""
