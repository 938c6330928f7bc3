"""infinity with our middleware, as its users start it from Python: its command takes no middleware."""

from __future__ import annotations

import os

import uvicorn
from infinity_emb import EngineArgs, create_server

from maas_middleware import MaaSMiddleware

app = create_server(
    engine_args_list=[EngineArgs(engine="debugengine", model_name_or_path="debug")],
    url_prefix="/v1",
    proxy_root_path="/srv",
)
app.add_middleware(MaaSMiddleware)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), proxy_headers=False)
