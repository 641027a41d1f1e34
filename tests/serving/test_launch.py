"""A launched server and its workers go with the process that launched them, even if that is killed."""

import json
import os
import signal
import subprocess
import sys

import httpx
import psutil
import pytest

from heliograph.data.language_models import smollm2_file
from heliograph.errors import MissingData
from heliograph.serving.load.launch import echo_command, free_port, serve_command

DEADLINE_S = 60.0

LAUNCHER = """
import json, sys
from heliograph.serving.load import launch_server
with launch_server(json.loads(sys.argv[1]), int(sys.argv[2])) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""

STUBBORN = """
import subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()"
worker = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
worker.stdout.readline()
class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""


def launch(command, port):
    """A process that launches a server, and what it has started: the server, its workers and the watcher."""
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, json.dumps(command), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    line = launcher.stdout.readline()
    started = psutil.Process(launcher.pid).children(recursive=True)
    return launcher, psutil.Process(int(line)), started


def left_of(processes):
    _, alive = psutil.wait_procs(processes, DEADLINE_S)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def end(launcher, started):
    launcher.kill()
    for process in started:
        if process.is_running():
            process.kill()
    launcher.communicate()


@pytest.mark.parametrize("whole_group", [False, True])
def test_a_server_and_its_deaf_worker_go_with_a_killed_launcher(whole_group):
    port = free_port()
    launcher, server, started = launch([sys.executable, "-c", STUBBORN, str(port)], port)
    try:
        assert server in started
        assert server.children()
        if whole_group:
            os.killpg(launcher.pid, signal.SIGKILL)
        else:
            launcher.kill()
        assert left_of(started) == []
    finally:
        end(launcher, started)


def test_a_server_of_instances_and_they_go_with_a_killed_launcher():
    try:
        smollm2_file()
    except MissingData as error:
        pytest.skip(str(error))
    port = free_port()
    flags = ["--layers", "1", "--cache-gib", "0.1", "--roles", "mix=1"]
    launcher, server, started = launch(serve_command("smollm2-135m", port, flags), port)
    try:
        assert server.children()
        launcher.kill()
        assert left_of(started) == []
    finally:
        end(launcher, started)


def test_nothing_is_left_after_a_launcher_that_ends_by_itself():
    port = free_port()
    launcher, _, started = launch(echo_command(port), port)
    try:
        launcher.communicate()
        assert launcher.returncode == 0
        assert left_of(started) == []
    finally:
        end(launcher, started)


def test_a_server_started_by_a_shell_outlives_it():
    port = free_port()
    shell = subprocess.run(
        ["sh", "-c", 'nohup "$@" >/dev/null 2>&1 </dev/null & echo $!', "sh", *echo_command(port)],
        capture_output=True,
        text=True,
        check=True,
    )
    server = psutil.Process(int(shell.stdout))
    try:
        transport = httpx.HTTPTransport(retries=10)
        with httpx.Client(transport=transport, trust_env=False) as client:
            assert client.get(f"http://127.0.0.1:{port}/health").status_code == 200
    finally:
        server.kill()
