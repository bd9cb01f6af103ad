"use strict";

// What the components of every page do. A classic script, since modules do not load from disk.

// A picture opens large, and closes by a click or Escape.
{
  const dialog = document.createElement("dialog");
  const close = document.createElement("button");
  const picture = document.createElement("img");
  const caption = document.createElement("p");
  dialog.className = "enlarged";
  close.type = "button";
  close.textContent = "×";
  close.setAttribute("aria-label", "Close");
  dialog.append(close, picture, caption);
  dialog.addEventListener("click", () => dialog.close());
  document.body.append(dialog);

  document.addEventListener("click", event => {
    const button = event.target.closest(".enlarge");
    if (!button) return;
    const small = button.parentElement.querySelector("img");
    picture.src = small.dataset.large || small.src;
    picture.alt = small.alt;
    picture.classList.toggle("pixelated", small.classList.contains("pixelated"));
    caption.textContent = small.alt;
    dialog.showModal();
  });
}

// A command is copied.
document.addEventListener("click", event => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = button.previousElementSibling.textContent;
  navigator.clipboard?.writeText(text).then(() => { button.textContent = "Copied"; });
});

// A slider moves the edge between two pictures.
document.addEventListener("input", event => {
  const slider = event.target.closest(".slider");
  if (slider) slider.style.setProperty("--share", event.target.value + "%");
});

// A map of the matrix takes its place under the slider.
document.addEventListener("click", event => {
  const button = event.target.closest("[data-overlay]");
  if (!button) return;
  const grid = button.closest(".attributions-grid");
  for (const other of grid.querySelectorAll("[data-overlay]")) {
    other.setAttribute("aria-pressed", String(other === button));
  }
  const [, second] = grid.querySelectorAll(".slider img");
  second.src = button.dataset.overlay;
  second.alt = button.dataset.name;
  grid.querySelector(".slider .sides span:last-child").textContent = button.dataset.name;
});

// A movie plays in place of the first picture of its section, once it is asked for.
document.addEventListener("click", event => {
  const button = event.target.closest("[data-movie]");
  if (!button) return;
  const picture = button.closest("section").querySelector("img");
  const isPlaying = button.getAttribute("aria-pressed") === "true";
  picture.dataset.still ||= picture.src;
  picture.src = isPlaying ? picture.dataset.still : button.dataset.movie;
  button.setAttribute("aria-pressed", String(!isPlaying));
  button.textContent = isPlaying ? "Play the run" : "Show the result";
});

// Paper has everything open.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details.reading")) details.open = true;
});

// The table of contents marks the section in view, and opens its chapter.
{
  const links = [...document.querySelectorAll(".contents a[href^='#']")];
  const findSection = link => document.getElementById(link.hash.slice(1));
  const sections = [...new Set(links.map(findSection).filter(Boolean))];

  function markCurrentSection() {
    const passed = sections.filter(section => section.getBoundingClientRect().top < 160);
    const current = passed.at(-1) || sections[0];
    for (const link of links) {
      const isCurrent = findSection(link) === current;
      if (isCurrent) {
        link.setAttribute("aria-current", "true");
      } else {
        link.removeAttribute("aria-current");
      }
    }
    for (const chapter of document.querySelectorAll(".contents-rail details")) {
      chapter.open = chapter.querySelector("[aria-current]") !== null;
    }
  }

  let isPending = false;
  function requestMark() {
    if (isPending) return;
    isPending = true;
    requestAnimationFrame(() => {
      isPending = false;
      markCurrentSection();
    });
  }

  if (sections.length) {
    addEventListener("scroll", requestMark, { passive: true });
    markCurrentSection();
  }

  // On a phone the menu closes when a section is chosen.
  for (const menu of document.querySelectorAll(".contents-menu")) {
    menu.addEventListener("click", event => {
      if (event.target.closest("a")) menu.open = false;
    });
  }
}
