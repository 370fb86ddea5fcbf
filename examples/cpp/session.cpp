// Two requests over one session, the second one cancelled as it begins: session MODEL PROMPT PROMPT
#include <map>

#include "anabranch/v1/model.grpc.pb.h"
#include "connect.h"

namespace v1 = anabranch::v1;

static v1::SessionRequestFrame start(uint64_t number, const char* model, const char* prompt) {
  v1::SessionRequestFrame frame;
  frame.set_stream(number);
  auto* request = frame.mutable_start();
  request->set_model(model);
  request->set_prompt(prompt);
  request->mutable_sampling()->set_temperature(0);
  request->mutable_sampling()->set_max_tokens(64);
  return frame;
}

int main(int argc, char** argv) try {
  if (argc != 4) {
    std::cerr << "usage: session MODEL PROMPT PROMPT" << std::endl;
    return 2;
  }
  CtrlC ctrl_c;
  std::string authorization;
  if (const auto status = authorize(authorization); !status.ok()) {
    explain(status);
    return 1;
  }
  const auto router = v1::ModelService::NewStub(dial(setting("ANABRANCH_TARGET", "127.0.0.1:50051")));
  grpc::ClientContext call;
  set_deadline(call, std::chrono::seconds(60));
  call.AddMetadata("authorization", authorization);
  ctrl_c.watch(&call);
  const auto session = router->Session(&call);

  v1::SessionResponse said;
  std::map<uint64_t, std::string> texts;
  while (session->Read(&said)) {
    v1::SessionRequest next;
    if (said.has_ready()) {
      *next.add_frames() = start(1, argv[1], argv[2]);
      *next.add_frames() = start(2, argv[1], argv[3]);
      texts = {{1, ""}, {2, ""}};
    }
    for (const auto& frame : said.frames()) {
      const auto number = frame.stream();
      // A failed request ends alone; the session goes on.
      if (frame.has_error()) {
        std::cout << number << " " << frame.error().message() << std::endl;
      } else {
        if (number == 2 && texts[2].empty() && !frame.chunk().text().empty()) {
          auto* cancel = next.add_frames();
          cancel->set_stream(2);
          cancel->mutable_cancel();
        }
        texts[number] += frame.chunk().text();
        if (frame.last())
          std::cout << number << " " << v1::FinishReason_Name(frame.chunk().finish_reason()) << ": "
                    << texts[number] << std::endl;
      }
      if (frame.last()) texts.erase(number);
    }
    if (next.frames_size() > 0) session->Write(next);
    // Half-closing lets what runs come to its end, then ends the session.
    if (texts.empty()) session->WritesDone();
  }
  const auto status = session->Finish();
  ctrl_c.watch(nullptr);
  if (ctrl_c.pressed()) {
    std::cerr << "cancelled" << std::endl;
    return 130;
  }
  if (status.ok()) return 0;
  explain(status);
  return 1;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << std::endl;
  return 2;
}
