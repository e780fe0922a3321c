// What the file holds is shown as soon as it is read.
{
  const data = JSON.parse(document.getElementById("inward-data").textContent);
  const root = document.getElementById("inward");
  if (data.live) globalThis.playground = startPlayground(root, data);
  else globalThis.player = inward.mount(root, data);
}
