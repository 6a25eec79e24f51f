from starlette.testclient import TestClient

from engine.protocol import EmbeddingFile
from tests.ingress.fakes import FakeBackend


def test_embeddings_are_listed_in_the_originals_shape(client: TestClient, backend: FakeBackend) -> None:
    backend.embedding_files = [
        EmbeddingFile(name="fine", width=768, vectors=2, usable=True),
        EmbeddingFile(name="sdxl", width=2048, vectors=8, usable=False),
    ]
    unknown = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    assert client.get("/sdapi/v1/embeddings").json() == {
        "loaded": {"fine": unknown | {"shape": 768, "vectors": 2}},
        "skipped": {"sdxl": unknown | {"shape": 2048, "vectors": 8}},
    }
