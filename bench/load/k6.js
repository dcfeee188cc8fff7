// The plan of `just bench --generator k6`, which passes it in as BENCH_PLAN.
import exec from 'k6/execution';
import { SharedArray } from 'k6/data';
import grpc from 'k6/net/grpc';

const plan = JSON.parse(open(__ENV.BENCH_PLAN));
const bodies = new SharedArray('bodies', () => JSON.parse(open(__ENV.BENCH_BODIES)));
const client = new grpc.Client();
client.loadProtoset(__ENV.BENCH_PROTOSET);

const first = plan.phases[0];
const seconds = plan.phases.reduce((sum, phase) => sum + phase.seconds, 0);
const most = plan.phases.reduce((least, phase) => Math.max(least, phase.rate, phase.to), 0);
// A virtual user holds a connection of its own and one request at a time; more join when these are busy.
const users = Math.max(10, Math.min(Math.ceil(most / 4), 250));

export const options = {
  discardResponseBodies: true,
  scenarios: {
    load: first.in_flight
      ? { executor: 'constant-vus', vus: first.in_flight, duration: `${seconds}s`, gracefulStop: `${plan.timeout}s` }
      : {
          executor: 'ramping-arrival-rate',
          startRate: Math.round(first.rate),
          timeUnit: '1s',
          preAllocatedVUs: users,
          maxVUs: 4 * users,
          gracefulStop: `${plan.timeout}s`,
          stages: plan.phases.flatMap((phase) => [
            { target: Math.round(phase.rate), duration: '0s' },
            { target: Math.round(phase.to), duration: `${phase.seconds}s` },
          ]),
        },
  },
};

const method = plan.method === 'batch' ? 'BatchRecommend' : 'Recommend';
const metadata = plan.token ? { authorization: `Bearer ${plan.token}` } : {};
let connected = false;

export default function () {
  if (!connected) {
    client.connect(plan.target, { plaintext: true });
    connected = true;
  }
  const number = exec.scenario.iterationInTest;
  client.invoke(`recommend_api.v1.RecommenderService/${method}`, bodies[number % bodies.length], {
    metadata,
    timeout: `${plan.timeout * 1000}ms`,
    tags: { number: String(number) },
  });
}
