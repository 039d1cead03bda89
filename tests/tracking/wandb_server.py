"""A stand-in for the Weights & Biases server on this machine: the part of its protocol that runs and artifacts need.

It speaks GraphQL for runs and artifacts, the file stream for history, summary and end, and storage for uploads. What it
got is kept for the tests. `fail()` and `stall()` change its behaviour at once, for connections that are open too.
"""

import gzip
import json
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "someone"


@dataclass
class ReceivedRun:
    """What the server knows of a run: rows of its history as they came, and the newest of everything else."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    exit_code: int | None = None
    used: list[str] = field(default_factory=list)

    @property
    def history(self) -> list[dict]:
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def summary(self) -> dict:
        return json.loads((self.lines.get("wandb-summary.json") or ["{}"])[-1])

    @property
    def config(self) -> dict:
        values = json.loads(self.fields.get("config") or "{}")
        return {key: value["value"] for key, value in values.items() if key != "_wandb"}


class Server:
    """Started on a free port of the loopback interface; a context manager."""

    def __init__(self) -> None:
        self.runs: dict[str, ReceivedRun] = {}
        self.artifacts: dict[str, dict] = {}  # by id
        self.uploads: dict[str, bytes] = {}  # by path below /storage/
        self.views: dict[str, dict] = {}  # workspaces, by name
        self.operations: list[str] = []
        self.unknown: list[str] = []
        self.failing = False
        self.released = threading.Event()
        self.released.set()
        self.lock = threading.Lock()
        handler = type("Handler", (Handler,), {"server_state": self})
        self.http = Listener(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> "Server":
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()

    def fail(self) -> None:
        """From now on every request gets status 500."""
        self.failing = True

    def stall(self) -> None:
        """From now on a request gets no answer, until `recover`."""
        self.released.clear()

    def recover(self) -> None:
        self.failing = False
        self.released.set()

    def run_of(self, name: str) -> ReceivedRun:
        return self.runs.setdefault(name, ReceivedRun(name))

    def named(self, name: str) -> list[dict]:
        """Every committed version of an artifact."""
        return [a for a in self.artifacts.values() if a["name"] == name and a["state"] == "COMMITTED"]

    def graphql(self, operation: str, query: str, variables: dict) -> dict | None:
        with self.lock:
            self.operations.append(operation)
            answer = getattr(self, f"answer_{operation}", None)
            if answer is None:
                self.unknown.append(f"{operation} {variables}\n{query}")
                return None
            return answer(**variables)

    def answer_Viewer(self) -> dict:
        flags = {"code_saving_enabled": False}
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "flags": json.dumps(flags), "teams": teams}}

    def answer_ServerFeaturesQuery(self) -> dict:
        return {"serverInfo": {"features": []}}

    def answer_OrganizationCoreWeaveOrganizationID(self, **_: Any) -> dict:
        return {"entity": {"organization": None}}

    def answer_GetDefaultEntity(self) -> dict:
        return {"viewer": {"id": "1", "entity": ENTITY}}

    def answer_ArtifactMembershipByName(self, name: str, project: str, **_: Any) -> dict:
        artifact = self.find(name)
        collection = {
            "__typename": "ArtifactSequence",
            "id": "c",
            "name": name.partition(":")[0],
            "project": {
                "id": "p",
                "internalId": "1",
                "name": project,
                "entity": {"__typename": "Entity", "id": "e", "name": ENTITY},
            },
        }
        membership = artifact and {
            "id": "m",
            "versionIndex": 0,
            "createdAt": "2026-01-01T00:00:00Z",
            "aliases": [],
            "artifactCollection": collection,
            "artifact": {
                "id": artifact["id"],
                "artifactSequence": collection,
                "versionIndex": 0,
                "artifactType": {"name": artifact["type"]},
                "description": None,
                "metadata": None,
                "ttlDurationSeconds": 0,
                "ttlIsInherited": True,
                "tags": [],
                "historyStep": None,
                "state": artifact["state"],
                "size": 0,
                "digest": artifact["digest"],
                "commitHash": None,
                "fileCount": 1,
                "createdAt": "2026-01-01T00:00:00Z",
                "updatedAt": None,
                "aliases": [],
            },
        }
        return {"project": {"artifactCollectionMembership": membership}}

    def answer_ArtifactType(self, name: str, **_: Any) -> dict:
        artifact = self.find(name)
        kind = {"artifactType": {"name": artifact["type"]}} if artifact else None
        return {"project": {"artifact": kind}}

    def find(self, name: str) -> dict | None:
        """The newest artifact that `collection:alias` names."""
        collection, _, alias = name.partition(":")
        found = [a for a in self.named(collection) if alias in a["aliases"]]
        return found[-1] if found else None

    def answer_UpsertBucket(self, name: str, project: str, entity: str | None = None, **fields: Any) -> dict:
        created = name not in self.runs
        run = self.run_of(name)
        run.fields.update({key: value for key, value in fields.items() if value is not None}, project=project)
        return {"upsertBucket": {"bucket": self.bucket(run), "inserted": created}}

    def bucket(self, run: ReceivedRun) -> dict:
        return {
            "id": f"run-{run.name}",
            "name": run.name,
            "displayName": run.fields.get("displayName"),
            "description": None,
            "config": run.fields.get("config"),
            "sweepName": None,
            "historyLineCount": len(run.lines.get("wandb-history.jsonl", [])),
            "project": {"id": "p", "name": run.fields["project"], "entity": {"id": "e", "name": ENTITY}},
        }

    def answer_RunResumeStatus(self, project: str, name: str, entity: str | None = None) -> dict:
        model = {"id": "p", "name": project, "entity": {"id": "e", "name": ENTITY}, "bucket": None}
        run = self.runs.get(name)
        if run is not None:
            model["bucket"] = self.bucket(run) | {
                "summaryMetrics": json.dumps(run.summary),
                "logLineCount": len(run.lines.get("output.log", [])),
                "eventsLineCount": len(run.lines.get("wandb-events.jsonl", [])),
                "historyTail": json.dumps(run.lines.get("wandb-history.jsonl", [])[-1:]),
                "eventsTail": json.dumps(run.lines.get("wandb-events.jsonl", [])[-1:]),
                "tags": run.fields.get("tags") or [],
                "notes": None,
                "wandbConfig": json.dumps({"t": 1}),
            }
        return {"model": model}

    def answer_Run(self, name: str, project: str, **_: Any) -> dict:
        run = self.runs.get(name)
        bucket = run and self.bucket(run) | {
            "tags": [],
            "group": run.fields.get("groupName"),
            "jobType": run.fields.get("jobType"),
            "commit": None,
            "readOnly": False,
            "createdAt": None,
            "heartbeatAt": None,
            "notes": None,
            "state": "finished",
            "host": None,
            "projectId": 1,
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(run.summary),
            "user": {"name": ENTITY, "username": ENTITY},
            "historyKeys": {"keys": {}},
        }
        return {"project": {"internalId": "1", "run": bucket}}

    def answer_RunStoppedStatus(self, **_: Any) -> dict:
        return {"project": {"run": {"stopped": False}}}

    def answer_CreateRunFiles(self, run: str, files: list[str], **_: Any) -> dict:
        urls = [{"name": name, "uploadUrl": f"{self.url}/storage/runs/{run}/{name}"} for name in files]
        return {"createRunFiles": {"runID": f"run-{run}", "uploadHeaders": [], "files": urls}}

    def answer_CreateArtifact(self, input: dict) -> dict:
        versions = [a for a in self.artifacts.values() if a["name"] == input["artifactCollectionName"]]
        same = [a for a in versions if a["digest"] == input["digest"] and a["state"] == "COMMITTED"]
        if same:
            artifact = same[0]
        else:
            artifact = {
                "id": f"artifact-{len(self.artifacts)}",
                "name": input["artifactCollectionName"],
                "type": input["artifactTypeName"],
                "digest": input["digest"],
                "run": input["runName"],
                "state": "PENDING",
                "aliases": [],
            }
            self.artifacts[artifact["id"]] = artifact
        artifact["aliases"] += [alias["alias"] for alias in input.get("aliases") or []]
        latest = {"id": versions[-1]["id"]} if versions else None
        sequence = {"latestArtifact": latest}
        return {
            "createArtifact": {"artifact": {k: artifact[k] for k in ("id", "state")} | {"artifactSequence": sequence}}
        }

    def answer_CreateArtifactManifest(self, artifactID: str, name: str, **_: Any) -> dict:
        url = f"{self.url}/storage/artifacts/{artifactID}/{name}"
        return {
            "createArtifactManifest": {
                "artifactManifest": {
                    "id": f"manifest-{artifactID}",
                    "file": {"id": f"file-{artifactID}", "uploadUrl": url, "uploadHeaders": []},
                }
            }
        }

    def answer_CreateArtifactFiles(self, input: dict) -> dict:
        nodes = []
        for file in input["artifactFiles"]:
            path = f"artifacts/{file['artifactID']}/files/{file['name']}"
            node = {
                "storagePath": path,
                "uploadUrl": f"{self.url}/storage/{path}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            nodes.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def answer_CommitArtifact(self, artifactID: str) -> dict:
        artifact = self.artifacts[artifactID]
        artifact["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": artifactID, "digest": artifact["digest"]}}}

    def answer_UpsertView2(self, name: str, id: str | None = None, **view: Any) -> dict:
        known = next((view for view in self.views.values() if view["id"] == id), None)
        view["id"] = id if known else f"view-{len(self.views)}"
        # Without an id a new view is made, as beside one of the same name.
        self.views[name if known or name not in self.views else f"{name}-{len(self.views)}"] = view
        return {"upsertView": {"view": {"id": view["id"], "name": name}, "inserted": not known}}

    def answer_View(self, viewName: str, **_: Any) -> dict:
        found = [self.views[viewName]] if viewName in self.views else []
        edges = [{"node": {key: view[key] for key in ("id", "displayName", "spec")}} for view in found]
        return {"project": {"allViews": {"edges": edges}}}

    def answer_UseArtifact(self, runName: str, artifactID: str, **_: Any) -> dict:
        artifact = self.artifacts[artifactID]
        self.run_of(runName).used.append(artifact["name"])
        answer = {"id": artifactID, "digest": artifact["digest"], "description": None, "state": artifact["state"]}
        return {"useArtifact": {"artifact": answer | {"createdAt": None, "metadata": None}}}

    def file_stream(self, run: str, body: dict) -> dict:
        with self.lock:
            received = self.run_of(run)
            for name, chunk in (body.get("files") or {}).items():
                lines = received.lines.setdefault(name, [])
                lines[chunk["offset"] : chunk["offset"] + len(chunk["content"])] = chunk["content"]
            if body.get("complete"):
                received.exit_code = body.get("exitcode")
        return {"exitcode": None, "limits": {}}


class Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up, as W&B's does at its end, is no error; any other is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server_state: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """The tests' output is no place for an access log."""

    def do_POST(self) -> None:
        body = self.read_body()
        if not self.willing():
            return
        if self.path.startswith("/graphql"):
            data = json.loads(body)
            query = data.get("query", "")
            operation = data.get("operationName") or query.split("(")[0].split("{")[0].split()[-1]
            answer = self.server_state.graphql(operation, query, data.get("variables") or {})
            if answer is None:
                self.answer(200, {"errors": [{"message": f"unknown operation {operation}"}]})
            else:
                self.answer(200, {"data": answer})
        elif self.path.startswith("/sdk/otel/"):
            self.answer(200, {})
        elif self.path.endswith("/file_stream"):
            self.answer(200, self.server_state.file_stream(self.path.split("/")[-2], json.loads(body)))
        else:
            self.server_state.unknown.append(self.path)
            self.answer(404, {})

    def do_PUT(self) -> None:
        body = self.read_body()
        if self.willing():
            self.server_state.uploads[self.path.removeprefix("/storage/")] = body
            self.answer(200, {})

    def do_GET(self) -> None:
        self.read_body()
        if self.willing():
            self.server_state.unknown.append(f"GET {self.path}")
            self.answer(404, {})

    def read_body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def willing(self) -> bool:
        self.server_state.released.wait()
        if self.server_state.failing:
            self.answer(500, {"error": "out of order"})
        return not self.server_state.failing

    def answer(self, status: int, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
