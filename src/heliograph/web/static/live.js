// Follows a running check: the server sends the live part as HTML that it has escaped already.
"use strict";
{
  const live = document.getElementById("live");
  const trouble = document.getElementById("trouble");
  const source = new EventSource(live.dataset.events);
  const tell = (text) => {
    trouble.textContent = text;
    trouble.hidden = !text;
  };
  source.addEventListener("state", (event) => {
    tell("");
    live.innerHTML = event.data;
  });
  source.addEventListener("trouble", (event) => tell(event.data));
  source.addEventListener("end", () => {
    source.close();
    location.replace(live.dataset.done);
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) {
      tell("The server does not send this run's progress now: it may be gone, or have too many live pages open. Reload to try again.");
    } else if (!trouble.textContent) {
      tell("The server does not answer; trying again.");
    }
  });
}
