"""`themis demo`."""

from __future__ import annotations

import sys

from themis_triton.core.errors import SettingsError
from themis_triton.core.policy import PolicyName
from themis_triton.demo.run import DemoOptions, run_demo


def demo_command(options: DemoOptions) -> None:
    """Run the demo. With `as_json` the last line of standard output is the summary."""
    summary = run_demo(options)
    if options.as_json:
        sys.stdout.write(summary.json_line() + "\n")


def parse_policy(text: str) -> PolicyName:
    """The policy of that name. SettingsError for an unknown name."""
    names = [policy.value for policy in PolicyName if policy.runs_live]
    if text not in names:
        raise SettingsError(f"--policy: {text} is invalid: expected {' or '.join(names)}. Fix: name a policy")
    return PolicyName(text)
