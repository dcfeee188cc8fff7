// Ask for one history, for many, and on a stream: node client.js [HOST:PORT]
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

// The committed descriptors hold the proto with everything that it imports.
const descriptors = new URL("../../../recommender/recommend_api/v1/recommend_api.binpb", import.meta.url);
const options = { keepCase: true, defaults: true, longs: Number };
const definition = loader.loadFileDescriptorSetFromBuffer(readFileSync(descriptors), options);
const { RecommenderService } = grpc.loadPackageDefinition(definition).recommend_api.v1;

const client = new RecommenderService(process.argv[2] ?? "localhost:50051", grpc.credentials.createInsecure());
const soon = () => ({ deadline: Date.now() + 5000 });

const call = (method, request) =>
  new Promise((resolve, reject) =>
    client[method](request, soon(), (error, reply) => (error ? reject(error) : resolve(reply))),
  );

const result = ({ response, error }) =>
  response ? response.item_ids.join(" ") : `${grpc.status[error.code]}: ${error.message}`;

try {
  const reply = await call("Recommend", { item_ids: [1, 2, 3, 4], limit: 5, exclude_history: true });
  console.log(`one: ${reply.item_ids.join(" ")} by ${reply.model_version}`);

  const requests = [[0], [9999, 999, 99], [-1]].map((item_ids) => ({ item_ids, limit: 3 }));
  const { results } = await call("BatchRecommend", { requests });
  for (const each of results) console.log(`batch: ${result(each)}`);

  const stream = client.StreamRecommend();
  requests.forEach((request, correlation_id) => stream.write({ correlation_id, request, timeout_ms: 5000 }));
  stream.end();
  for await (const each of stream) console.log(`stream ${each.correlation_id}: ${result(each)}`);
} catch (error) {
  console.error(`${grpc.status[error.code] ?? "error"}: ${error.details ?? error}`);
  process.exitCode = 1;
} finally {
  client.close();
}
