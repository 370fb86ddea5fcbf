// What both examples need before and after their call: channels, a token, readable errors.
// The environment names everything; see examples/README.md.
import { readFileSync } from "node:fs";
import { credentials, Metadata, status, type ChannelCredentials, type ChannelOptions, type ServiceError } from "@grpc/grpc-js";
import { AuthServiceClient, type IssueTokenResponse } from "./stubs/anabranch/v1/auth.js";
import { ModelServiceClient } from "./stubs/anabranch/v1/model.js";
import { ErrorInfo, RetryInfo } from "./stubs/google/rpc/error_details.js";
import { Status } from "./stubs/google/rpc/status.js";

const env = process.env;

// TLS when ANABRANCH_TLS_CA_FILE is set, mutual TLS when a certificate and its key are too.
function channelCredentials(): ChannelCredentials {
  const { ANABRANCH_TLS_CA_FILE: ca, ANABRANCH_TLS_CERT_FILE: cert, ANABRANCH_TLS_KEY_FILE: key } = env;
  if (!ca) return credentials.createInsecure();
  return credentials.createSsl(
    readFileSync(ca),
    key ? readFileSync(key) : null,
    cert ? readFileSync(cert) : null,
  );
}

function channelOptions(): ChannelOptions {
  const { ANABRANCH_SERVICE_CONFIG_FILE: file } = env;
  return file ? { "grpc.service_config": readFileSync(file, "utf8") } : {};
}

export function router(): ModelServiceClient {
  return new ModelServiceClient(env.ANABRANCH_TARGET || "127.0.0.1:50051", channelCredentials(), channelOptions());
}

export function within(seconds: number): { deadline: number } {
  return { deadline: Date.now() + seconds * 1000 };
}

// The metadata of a call. Its token is good for minutes: whoever runs longer fetches the next one at
// 80 % of `expiresIn`.
export async function authorize(): Promise<Metadata> {
  const auth = new AuthServiceClient(env.ANABRANCH_AUTH_TARGET || "127.0.0.1:50054", channelCredentials(), channelOptions());
  const request = {
    grantType: "client_credentials",
    clientId: env.ANABRANCH_CLIENT_ID ?? "",
    clientSecret: readFileSync(env.ANABRANCH_CLIENT_SECRET_FILE ?? "", "utf8").trim(),
    scopes: [],
  };
  try {
    const issued = await new Promise<IssueTokenResponse>((resolve, reject) => {
      auth.issueToken(request, new Metadata(), within(10), (error, response) =>
        error ? reject(error) : resolve(response),
      );
    });
    const metadata = new Metadata();
    metadata.set("authorization", `Bearer ${issued.accessToken}`);
    return metadata;
  } finally {
    auth.close();
  }
}

// Prints why a call failed. Seconds to wait when the service says that repeating is safe, and when.
export function explain(error: unknown): number | undefined {
  if (!isServiceError(error)) {
    console.error(`error: ${error instanceof Error ? error.message : String(error)}`);
    return undefined;
  }
  const [raw] = error.metadata.get("grpc-status-details-bin");
  const details = raw instanceof Buffer ? Status.decode(raw).details : [];
  const found = (type: string) => details.find((any) => any.typeUrl.endsWith(`/google.rpc.${type}`))?.value;
  const [info, retry] = [found("ErrorInfo"), found("RetryInfo")];
  const named = info && ErrorInfo.decode(info);
  console.error(`error: ${named?.reason ?? status[error.code]}: ${error.details}`);
  const delay = retry && RetryInfo.decode(retry).retryDelay;
  if (!delay || named?.metadata["work"] !== "not_dispatched") return undefined;
  return Number(delay.seconds) + delay.nanos / 1e9;
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "metadata" in error;
}
