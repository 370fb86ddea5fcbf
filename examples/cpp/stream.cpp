// Prints an answer as it comes: stream MODEL PROMPT [MAX_TOKENS]
#include "anabranch/v1/model.grpc.pb.h"
#include "connect.h"

namespace v1 = anabranch::v1;

static grpc::Status ask(v1::ModelService::Stub& router, const std::string& authorization,
                        const v1::GenerateRequest& request, CtrlC& ctrl_c) {
  grpc::ClientContext call;
  set_deadline(call, std::chrono::seconds(60));
  call.AddMetadata("authorization", authorization);
  ctrl_c.watch(&call);
  const auto stream = router.StreamGenerate(&call, request);
  v1::GenerateChunk chunk, last;
  while (stream->Read(&chunk)) {
    std::cout << chunk.text() << std::flush;
    last = chunk;
  }
  const auto status = stream->Finish();
  ctrl_c.watch(nullptr);
  if (status.ok()) {
    std::cout << std::endl;
    std::cerr << "receipt: " << v1::Tier_Name(last.receipt().tier()) << " "
              << last.receipt().backend_id() << ", " << last.usage().completion_tokens()
              << " tokens" << std::endl;
  }
  return status;
}

int main(int argc, char** argv) try {
  if (argc < 3) {
    std::cerr << "usage: stream MODEL PROMPT [MAX_TOKENS]" << std::endl;
    return 2;
  }
  CtrlC ctrl_c;
  std::string authorization;
  if (const auto status = authorize(authorization); !status.ok()) {
    explain(status);
    return 1;
  }
  v1::GenerateRequest request;
  request.set_model(argv[1]);
  auto* message = request.add_messages();
  message->set_role(v1::ROLE_USER);
  message->add_content()->set_text(argv[2]);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_tokens(argc > 3 ? std::stoi(argv[3]) : 64);

  const auto router = v1::ModelService::NewStub(dial(setting("ANABRANCH_TARGET", "127.0.0.1:50051")));
  for (bool again = true;; again = false) {
    const auto status = ask(*router, authorization, request, ctrl_c);
    if (status.ok()) return 0;
    if (ctrl_c.pressed()) {
      std::cerr << "cancelled" << std::endl;
      return 130;
    }
    const auto wait = explain(status);
    if (!wait || !again) return 1;
    std::cerr << "once more in " << *wait << " s" << std::endl;
    std::this_thread::sleep_for(std::chrono::duration<double>(*wait));
  }
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << std::endl;
  return 2;
}
