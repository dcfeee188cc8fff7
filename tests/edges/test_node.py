"""The service as another language's client uses it: Node, from the committed descriptors."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.facts import FACTS
from tests.support.paths import ROOT
from tests.support.serving import AnyServer

pytestmark = pytest.mark.both_edges

PACKAGES = ("@grpc/grpc-js@1.14", "@grpc/proto-loader@0.8")
CLIENT = """
const fs = require('fs'), grpc = require('@grpc/grpc-js'), loader = require('@grpc/proto-loader');
const [target, descriptors, histories] = process.argv.slice(2);
const definition = loader.loadFileDescriptorSetFromBuffer(fs.readFileSync(descriptors), {keepCase: true});
const { RecommenderService } = grpc.loadPackageDefinition(definition).recommend_api.v1;
const client = new RecommenderService(target, grpc.credentials.createInsecure());
const requests = JSON.parse(histories).map((item_ids) => ({ item_ids }));
const call = { requests: [...requests, { item_ids: [-1] }] };
client.BatchRecommend(call, { deadline: Date.now() + 30000 }, (error, reply) => {
  if (error) throw error;
  console.log(JSON.stringify(reply.results.map((each) => each.response ? each.response.item_ids : each.error.code)));
  client.close();
});
"""


@pytest.mark.system
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm: apt-get install nodejs npm")
async def test_a_node_client_gets_the_known_answers(server: AnyServer, tmp_path: Path) -> None:
    (tmp_path / "client.js").write_text(CLIENT, encoding="utf-8")
    install = ("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(tmp_path), *PACKAGES)
    await asyncio.to_thread(subprocess.run, install, check=True, capture_output=True, timeout=100)
    descriptors = ROOT / "recommender/recommend_api/v1/recommend_api.binpb"
    process = await asyncio.create_subprocess_exec(
        "node", "client.js", f"127.0.0.1:{server.port}", str(descriptors), json.dumps([list(ids) for ids in FACTS]),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip

    out, err = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 0, err.decode()
    assert json.loads(out) == [*FACTS.values(), 3]
