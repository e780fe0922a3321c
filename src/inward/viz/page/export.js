// A picture leaves the page as SVG or PNG: every style that it shows is written into it.

const STYLES = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "opacity", "font-size", "font-weight", "font-style", "font-family", "text-decoration"];

function standalone(picture, title, caption) {
  const box = picture.viewBox.baseVal, edge = 20, head = 46, foot = 30;
  const copy = picture.cloneNode(true), originals = picture.querySelectorAll("*"), copies = copy.querySelectorAll("*");
  originals.forEach((from, i) => {
    const style = getComputedStyle(from), to = copies[i];
    for (const name of STYLES) {
      const value = style.getPropertyValue(name);
      if (value && !(name === "fill" && (from.getAttribute("fill") || "").startsWith("url"))) to.setAttribute(name, value.replace(/"/g, "'"));
    }
    to.removeAttribute("class");
  });
  copy.querySelectorAll("[data-key], title").forEach((part) => part.remove());
  const body = getComputedStyle(document.body), ink = body.color, width = Math.max(360, box.width) + 2 * edge, height = box.height + head + foot + edge;
  const whole = s("svg", { xmlns: SVG, width, height, viewBox: `0 0 ${width} ${height}` },
    s("title", { text: title }),
    s("rect", { width, height, fill: body.backgroundColor }),
    label(edge, 28, title, { fill: ink, "font-size": 17, "font-weight": 650, "font-family": FONT.replace(/"/g, "'") }),
    label(edge, height - 14, caption, { fill: ink, "font-size": 12, opacity: 0.8, "font-family": FONT.replace(/"/g, "'") }));
  const place = s("g", { transform: `translate(${edge} ${head})` });
  for (const part of [...copy.childNodes]) place.append(part);
  whole.append(place);
  return { whole, width, height };
}

function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 5000);
}

const svgText = (picture, title, caption) => new XMLSerializer().serializeToString(standalone(picture, title, caption).whole);

function saveSvg(picture, title, caption, name) {
  save(new Blob([svgText(picture, title, caption)], { type: "image/svg+xml" }), name + ".svg");
}

function savePng(picture, title, caption, name) {
  const { width, height } = standalone(picture, title, caption);
  const image = new Image(), scale = 2;
  return new Promise((resolve, reject) => {
    image.onload = () => {
      const canvas = h("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => { if (blob) save(blob, name + ".png"); resolve(Boolean(blob)); }, "image/png");
    };
    image.onerror = () => reject(new Error("this browser cannot draw the picture; save it as SVG"));
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svgText(picture, title, caption));
  });
}
