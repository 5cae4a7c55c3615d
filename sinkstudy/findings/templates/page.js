/* The contents follow the reader, and figures enlarge. Without this the page reads the same. */
const nav = document.querySelector("nav");
const links = [...nav.querySelectorAll("li a")];
const sections = links.map((link) => document.getElementById(link.hash.slice(1)));
const contents = document.getElementById("contents");
contents.open = !matchMedia("(max-width: 900px)").matches;

let waiting = false;
function follow() {
  waiting = false;
  const passed = sections.filter((section) => section.getBoundingClientRect().top < innerHeight / 4).length;
  const atEnd = scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
  const here = links[atEnd ? links.length - 1 : Math.max(0, passed - 1)];
  for (const link of links) link.toggleAttribute("aria-current", link === here);
  here.setAttribute("aria-current", "true");
  const top = here.offsetTop - nav.clientHeight / 2;
  if (nav.scrollHeight > nav.clientHeight) nav.scrollTop = top;
}
addEventListener("scroll", () => { waiting ||= requestAnimationFrame(follow); }, { passive: true });
follow();

const large = document.getElementById("large");
for (const button of document.querySelectorAll("figure button")) {
  button.addEventListener("click", () => {
    large.querySelector("figure").replaceChildren(...[...button.parentElement.children].map((part) => (
      part === button ? button.firstElementChild.cloneNode() : part.cloneNode(true))));
    large.showModal();
  });
}
large.addEventListener("click", () => large.close());
