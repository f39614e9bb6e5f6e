// What tests ask a page: which texts have too little contrast, what leaves the window, which names cover each other.

window.numbers = (colour) => colour.match(/[\d.]+/g).map(Number);

window.luminance = (colour) => {
  const [r, g, b] = numbers(colour).slice(0, 3).map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};

window.ground = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    const parts = numbers(colour);
    if (parts.length === 3 || parts[3] === 1) return colour;
  }
  return "rgb(255, 255, 255)";
};

window.lowContrast = (least) => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const low = [];
  let texts = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const box = element.getBoundingClientRect();
    if (!walker.currentNode.data.trim() || !box.width || ["SCRIPT", "STYLE", "title", "desc"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    const [one, other] = [luminance(colour), luminance(ground(element))].sort((a, b) => b - a);
    texts += 1;
    if ((one + 0.05) / (other + 0.05) < least) low.push(walker.currentNode.data + " " + colour + " on " + ground(element));
  }
  return { texts, low };
};

window.outside = (width) => [...document.body.querySelectorAll("*")].filter((element) => {
  if (element.closest(".scroll, .skip, pre, .hidden, .theme input, svg *")) return false;
  const box = element.getBoundingClientRect();
  return box.width > 0 && (box.right > width + 0.5 || box.left < -0.5);
}).map((element) => element.outerHTML.slice(0, 120));

window.covered = (selector) => {
  const boxes = [...document.querySelectorAll(selector)].map((element) => [element.textContent, element.getBBox()]);
  const found = [];
  boxes.forEach(([name, a], index) => boxes.slice(index + 1).forEach(([other, b]) => {
    const across = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x);
    const down = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y);
    if (across > 1 && down > 4) found.push(name + " / " + other);  // boxes have room above and below the letters
  }));
  return found;
};

window.blockedLoads = async () => {
  const found = [];
  document.addEventListener("securitypolicyviolation", (event) => found.push(event.effectiveDirective));
  const image = document.createElement("img");
  image.src = "https://example.invalid/a.png";
  const script = document.createElement("script");
  script.textContent = "window.ran = true";
  const style = document.createElement("style");
  style.textContent = "body { display: none }";
  document.body.append(image, script, style);
  await fetch("https://example.invalid/").catch(() => null);
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return found;
};
0;
