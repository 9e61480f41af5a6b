"""`kdscale submit` against a real Ray head with token authentication."""

import contextlib
import http.server
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import requests

from kdscale.commands.run import STAGES
from kdscale.experiment.load import load_config
from kdscale.store import open_store
from tests.faults.watcher import leaks
from tests.worlds.ray_head import clean_environment, ray_head
from tests.worlds.world import make_config

WAIT_S = 120


@pytest.fixture(scope="module")
def head(s3_server):
    """A head whose processes may use the object store, as nodes with a role or a Secret may."""
    with ray_head(cpus=2) as head:
        yield head


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_config(tmp_path_factory.mktemp("submit"))


def command(address, config, *arguments):
    program = [sys.executable, "-m", "kdscale", "submit", "--address", address, str(config)]
    return [*program, *arguments]


def submit(address, config, *arguments, env):
    began = time.monotonic()
    done = subprocess.run(
        command(address, config, *arguments),
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=4 * WAIT_S,
    )
    done.seconds = time.monotonic() - began
    return done


def job_id(shown):
    return re.search(r"job (raysubmit_\w+)", shown)[1]


def job_status(head, job):
    shown = subprocess.run(
        ["ray", "job", "status", "--address", head.dashboard, job],
        env=head.environment(),
        capture_output=True,
        text=True,
    )
    return re.search(r"PENDING|RUNNING|STOPPED|SUCCEEDED|succeeded|FAILED|stopped", shown.stdout)[0]


@pytest.mark.parametrize("stage", ["run", *STAGES])
def test_every_stage_has_an_entry_point(stage):
    shown = subprocess.run(
        [sys.executable, "-m", f"jobs.{stage.replace('-', '_')}", "nowhere.yaml"],
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 1
    assert shown.stderr.startswith("kdscale: no config file nowhere.yaml")


@pytest.mark.slow
def test_a_stage_runs_on_the_cluster_and_its_log_is_followed(head, config, s3_server):
    # Preparing, training workers and score actors: three uses of the one Ray of the cluster. The
    # client has no key to the store: the nodes have.
    uri = f"s3://{s3_server.bucket}/submitted"
    env = head.environment()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del env[name]
    done = submit(
        head.dashboard, config, "--stage", "score", "--set", f"storage.uri={uri}", env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"job \w+: score of \S+config.yaml, sent \d\.\d MiB", done.stdout)
    assert "connecting to Ray (auto)" in done.stdout and "starting Ray" not in done.stdout
    assert done.stdout.count("scores: score") == 1  # each line of the log once
    assert done.stdout.rstrip().endswith("succeeded")
    assert done.stderr == ""  # nothing of Ray's own
    assert not [s for s in [head.token, *s3_server.secrets] if s in done.stdout + done.stderr]
    assert len(open_store(uri).list("scores")) == 1
    assert leaks(head.folder.rglob("*"), uri) == []


@pytest.mark.slow
def test_a_job_that_fails_gives_its_exit_code_and_its_last_line(head, config):
    done = submit(
        head.dashboard, config, "--stage", "prepare", "--set", "source.path=/nowhere",
        env=head.environment(),
    )  # fmt: skip
    assert done.returncode == 1
    assert re.search(r"kdscale: .*/nowhere", done.stdout)
    store = load_config(config).storage.uri
    assert f"warning: storage.uri {store} is a folder: every node" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"warning: job \w+: failed \(.*exit code 1.*\)", last)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RAY_AUTH_TOKEN": "0" * 32}, "refuses this token"),
        ({"RAY_AUTH_TOKEN": "", "HOME": "/nowhere"}, "asks for a token, and there is none"),
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token, and there is none"),
    ],
)
def test_a_wrong_token_is_one_line_without_the_token(head, config, changes, message):
    env = head.environment(**changes)
    done = submit(head.dashboard, config, env=env)
    assert done.returncode == 1
    assert message in done.stderr and "set RAY_AUTH_TOKEN, " in done.stderr
    assert done.stderr.startswith("kdscale: --address") and done.stderr.count("\n") == 1
    assert not env["RAY_AUTH_TOKEN"] or env["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_token_in_a_file_and_an_address_of_another_cluster_in_the_environment(head, config):
    token = head.folder / "token"
    token.write_text(head.token)
    env = {
        **clean_environment(),
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ADDRESS": "http://127.0.0.1:1",
    }
    done = submit(head.dashboard, config, "--detach", "--set", "source.path=/nowhere", env=env)
    assert done.returncode == 0, done.stderr
    assert f"ray job logs --follow --address {head.dashboard} {job_id(done.stdout)}" in done.stdout


@contextlib.contextmanager
def answering(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_an_address_that_is_none(config):
    for address in ("head:8265", "ray://head:10001", "http://"):
        done = submit(address, config, env=clean_environment())
        assert done.returncode == 1 and "write it as http://HOST:8265" in done.stderr


def test_an_address_where_nothing_answers_fails_in_seconds(config):
    refused = submit("http://127.0.0.1:1", config, env=clean_environment())
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        hangs = submit(address, config, env=clean_environment())
    with answering(http.server.SimpleHTTPRequestHandler) as address:
        other = submit(address, config, env=clean_environment())
    for done, message in (
        (refused, "no connection; see that the cluster is up"),
        (hangs, "no answer; see that the cluster is up"),
        (other, "something answers that is not Ray's dashboard"),
    ):
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert done.stderr.startswith("kdscale: --address http://127.0.0.1:")
        assert done.stderr.count("\n") == 1 and done.seconds < 20


def test_a_proxy_that_is_in_the_way_is_named(config):
    env = {
        **{k: v for k, v in clean_environment().items() if not k.lower().endswith("_proxy")},
        "HTTP_PROXY": "http://someone:s3cret@127.0.0.1:9",
    }
    done = submit("http://head.invalid:8265", config, env=env)
    assert "no connection" in done.stderr and done.stderr.count("\n") == 1
    assert "head.invalid was asked through the proxy 127.0.0.1:9 (HTTP_PROXY)" in done.stderr
    assert "s3cret" not in done.stderr
    direct = submit("http://head.invalid:8265", config, env={**env, "NO_PROXY": "head.invalid"})
    assert "no connection" in direct.stderr and "proxy" not in direct.stderr
    with answering(http.server.SimpleHTTPRequestHandler) as proxy:  # has its own page for all
        done = submit("http://head.invalid:8265", config, env={**env, "HTTP_PROXY": proxy})
    assert "not Ray's dashboard" in done.stderr and "was asked through the proxy" in done.stderr


class Forwarding(http.server.BaseHTTPRequestHandler):
    """A proxy that knows where head.invalid is, and no WebSockets."""

    dashboard = ""

    def log_message(self, *args):
        pass

    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        there = self.dashboard + self.path.partition(".invalid:8265")[2]
        hop = ("host", "proxy-connection", "connection", "accept-encoding")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in hop}
        answer = requests.request(
            self.command, there, data=body, headers=headers, proxies={"http": ""}
        )
        self.send_response(answer.status_code)
        for name in ("Content-Type", "x-ray-version"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_PUT = do_DELETE = forward


@pytest.mark.slow
def test_a_log_is_followed_through_a_proxy(head, config):
    handler = type("Handler", (Forwarding,), {"dashboard": head.dashboard})
    with answering(handler) as proxy:
        env = head.environment(HTTP_PROXY=proxy, NO_PROXY="", no_proxy="")
        failing = ("--stage", "prepare", "--set", "source.path=/nowhere")
        done = submit("http://head.invalid:8265", config, *failing, env=env)
    assert done.returncode == 1, done.stderr
    assert len(re.findall(r"kdscale: .*/nowhere", done.stdout)) == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("storage.uri=outputs/x", "storage.uri 'outputs/x' is relative: on the cluster"),
        ("storage.uri=file://outputs/x", "is relative: on the cluster"),
        ("teacher.train.lrr=1", "unknown key teacher.train.lrr; did you mean lr"),
    ],
)
def test_a_mistake_in_the_config_is_told_before_anything_is_sent(config, override, message):
    done = submit("http://127.0.0.1:1", config, "--set", override, env=clean_environment())
    assert done.returncode == 1 and message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_where_the_store_is_goes_with_the_job_and_who_may_use_it_does_not(head, config):
    keys = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "s3cret-of-a-test"}
    env = head.environment(AWS_ENDPOINT_URL="http://10.0.0.1:9000", AWS_REGION="there", **keys)
    failing = ("--detach", "--set", "source.path=/nowhere")
    done = submit(head.dashboard, config, *failing, env=env)
    known = subprocess.run(
        ["ray", "job", "list", "--address", head.dashboard],
        env=head.environment(),
        capture_output=True,
        text=True,
    ).stdout
    known = known[known.index(job_id(done.stdout)) :]
    assert "http://10.0.0.1:9000" in known and "s3cret" not in known and "someone" not in known
    env["AWS_ENDPOINT_URL"] = "http://someone:s3cret-of-a-test@10.0.0.1:9000"
    done = submit(head.dashboard, config, *failing, env=env)
    assert done.returncode == 1 and "AWS_ENDPOINT_URL holds a user name" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


class Terminal:
    """The command on a terminal of its own, as a person has it."""

    def __init__(self, arguments, env):
        self.shown = ""
        master, slave = pty.openpty()
        self.process = subprocess.Popen(
            arguments, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.master = master

    def wait_for(self, text):
        deadline = time.monotonic() + WAIT_S
        os.set_blocking(self.master, False)
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            with contextlib.suppress(BlockingIOError, OSError):
                self.shown += os.read(self.master, 65536).decode()
            time.sleep(0.05)

    def type(self, text):
        os.write(self.master, text.encode())


LONG = ("--stage", "finetune", "--set", "teacher.train.max_steps=1000000")


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_or_stops_it_as_asked(head, config):
    arguments = command(head.dashboard, config, *LONG)
    terminal = Terminal(arguments, head.environment())
    terminal.wait_for("dataset: ")  # the log is being followed
    job = job_id(terminal.shown)
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("stop job")
    terminal.type("n\n")
    terminal.wait_for("stop it:")
    assert terminal.process.wait(30) == 130
    assert job_status(head, job) == "RUNNING"
    # The line that tells how to stop it does.
    stop = re.search(r"stop it: +(.*?)\r?\n", terminal.shown)[1]
    variable, *words = shlex.split(stop)
    assert variable == "RAY_AUTH_MODE=token"
    subprocess.run(words, env=head.environment(), check=True, capture_output=True)
    assert job_status(head, job) in ("STOPPED", "stopped")

    terminal = Terminal(arguments, head.environment())
    terminal.wait_for("sent ")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("stop job")
    terminal.type("y\n")
    assert terminal.process.wait(WAIT_S) == 130
    terminal.wait_for("stopped; finished stages are kept")
    assert job_status(head, job_id(terminal.shown)) in ("STOPPED", "stopped")


@pytest.mark.slow
def test_ctrl_c_without_a_terminal_leaves_the_job_and_says_so(head, config):
    process = subprocess.Popen(
        command(head.dashboard, config, *LONG),
        env=head.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    first = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    job = job_id("".join(first))
    assert process.returncode == 130 and f"job {job} goes on" in rest
    assert job_status(head, job) in ("PENDING", "RUNNING")
    subprocess.run(
        ["ray", "job", "stop", "--no-wait", "--address", head.dashboard, job],
        env=head.environment(),
        check=True,
        capture_output=True,
    )
