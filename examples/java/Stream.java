// Prints an answer as it comes: Stream MODEL PROMPT [MAX_TOKENS]. The environment names everything
// else; see examples/README.md.

import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.anabranch.v1.AuthServiceGrpc;
import io.anabranch.v1.ContentPart;
import io.anabranch.v1.GenerateChunk;
import io.anabranch.v1.GenerateRequest;
import io.anabranch.v1.IssueTokenRequest;
import io.anabranch.v1.Message;
import io.anabranch.v1.ModelServiceGrpc;
import io.anabranch.v1.Role;
import io.anabranch.v1.Sampling;
import io.grpc.ClientInterceptor;
import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Iterator;
import java.util.Optional;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

public final class Stream {
  private static String setting(String name, String otherwise) {
    String value = System.getenv(name);
    return value == null || value.isEmpty() ? otherwise : value;
  }

  // TLS when ANABRANCH_TLS_CA_FILE is set, mutual TLS when a certificate and its key are too.
  private static ManagedChannel dial(String target) throws IOException {
    String ca = setting("ANABRANCH_TLS_CA_FILE", "");
    if (ca.isEmpty()) {
      return Grpc.newChannelBuilder(target, InsecureChannelCredentials.create()).build();
    }
    TlsChannelCredentials.Builder tls = TlsChannelCredentials.newBuilder().trustManager(new File(ca));
    String certificate = setting("ANABRANCH_TLS_CERT_FILE", "");
    if (!certificate.isEmpty()) {
      tls.keyManager(new File(certificate), new File(setting("ANABRANCH_TLS_KEY_FILE", "")));
    }
    return Grpc.newChannelBuilder(target, tls.build()).build();
  }

  // A token is good for minutes: whoever runs longer fetches the next one at 80 % of expires_in.
  private static ClientInterceptor authorize() throws IOException {
    Path secret = Path.of(setting("ANABRANCH_CLIENT_SECRET_FILE", ""));
    IssueTokenRequest request =
        IssueTokenRequest.newBuilder()
            .setClientId(setting("ANABRANCH_CLIENT_ID", ""))
            .setClientSecret(Files.readString(secret).trim())
            .build();
    ManagedChannel channel = dial(setting("ANABRANCH_AUTH_TARGET", "127.0.0.1:50054"));
    try {
      AuthServiceGrpc.AuthServiceBlockingStub auth = AuthServiceGrpc.newBlockingStub(channel);
      String token =
          auth.withDeadlineAfter(10, TimeUnit.SECONDS).issueToken(request).getAccessToken();
      Metadata metadata = new Metadata();
      metadata.put(
          Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
      return MetadataUtils.newAttachHeadersInterceptor(metadata);
    } finally {
      channel.shutdownNow();
    }
  }

  private static void ask(ManagedChannel router, GenerateRequest request) throws IOException {
    ModelServiceGrpc.ModelServiceBlockingStub models =
        ModelServiceGrpc.newBlockingStub(router)
            .withInterceptors(authorize())
            .withDeadlineAfter(60, TimeUnit.SECONDS);
    GenerateChunk last = GenerateChunk.getDefaultInstance();
    for (Iterator<GenerateChunk> chunks = models.streamGenerate(request); chunks.hasNext(); ) {
      last = chunks.next();
      System.out.print(last.getText());
      System.out.flush();
    }
    System.out.println();
    System.err.printf(
        "receipt: %s %s, %d tokens%n",
        last.getReceipt().getTier(),
        last.getReceipt().getBackendId(),
        last.getUsage().getCompletionTokens());
  }

  // Prints why a call failed. How long to wait when the service says that repeating is safe, and
  // when.
  private static Optional<Duration> explain(StatusRuntimeException error) throws IOException {
    ErrorInfo info = ErrorInfo.getDefaultInstance();
    Optional<Duration> wait = Optional.empty();
    for (com.google.protobuf.Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
      if (detail.is(ErrorInfo.class)) {
        info = detail.unpack(ErrorInfo.class);
      } else if (detail.is(RetryInfo.class)) {
        com.google.protobuf.Duration delay = detail.unpack(RetryInfo.class).getRetryDelay();
        wait = Optional.of(Duration.ofSeconds(delay.getSeconds(), delay.getNanos()));
      }
    }
    String reason =
        info.getReason().isEmpty() ? error.getStatus().getCode().name() : info.getReason();
    System.err.printf("error: %s: %s%n", reason, error.getStatus().getDescription());
    String work = info.getMetadataOrDefault("work", "");
    return work.equals("not_dispatched") ? wait : Optional.empty();
  }

  private static int askTwiceIfTold(String[] words) throws IOException, InterruptedException {
    int limit = words.length > 2 ? Integer.parseInt(words[2]) : 64;
    ContentPart text = ContentPart.newBuilder().setText(words[1]).build();
    GenerateRequest request =
        GenerateRequest.newBuilder()
            .setModel(words[0])
            .addMessages(Message.newBuilder().setRole(Role.ROLE_USER).addContent(text))
            .setSampling(Sampling.newBuilder().setTemperature(0).setMaxTokens(limit))
            .build();
    ManagedChannel router = dial(setting("ANABRANCH_TARGET", "127.0.0.1:50051"));
    try {
      for (boolean again = true; ; again = false) {
        try {
          ask(router, request);
          return 0;
        } catch (StatusRuntimeException error) {
          if (Context.current().isCancelled()) {
            throw error; // by Ctrl-C
          }
          Optional<Duration> wait = explain(error);
          if (wait.isEmpty() || !again) {
            return 1;
          }
          System.err.printf("once more in %.3f s%n", wait.get().toMillis() / 1e3);
          Thread.sleep(wait.get().toMillis());
        }
      }
    } finally {
      router.shutdown();
    }
  }

  public static void main(String[] words) throws Exception {
    if (words.length < 2) {
      System.err.println("usage: Stream MODEL PROMPT [MAX_TOKENS]");
      System.exit(2);
    }
    // Ctrl-C starts the hooks; the process ends when they have. What runs under this context is
    // cancelled with it.
    Context.CancellableContext interruptible = Context.current().withCancellation();
    CountDownLatch over = new CountDownLatch(1);
    Thread onCtrlC =
        new Thread(
            () -> {
              interruptible.cancel(null);
              try {
                over.await(5, TimeUnit.SECONDS);
              } catch (InterruptedException tooLate) {
                Thread.currentThread().interrupt();
              }
              System.err.println("cancelled");
            });
    Runtime.getRuntime().addShutdownHook(onCtrlC);
    int status = 1;
    try {
      status = interruptible.call(() -> askTwiceIfTold(words));
    } catch (IOException | InterruptedException | RuntimeException error) {
      if (!interruptible.isCancelled()) {
        System.err.println("error: " + error);
        status = 2;
      }
    } finally {
      over.countDown();
    }
    if (!interruptible.isCancelled()) {
      Runtime.getRuntime().removeShutdownHook(onCtrlC);
      System.exit(status);
    }
  }
}
