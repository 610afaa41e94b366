// A copy button on every block that asks for one.
for (const block of document.querySelectorAll("pre.copy")) {
  const button = document.createElement("button");
  button.textContent = "Copy";
  button.onclick = async () => {
    await navigator.clipboard.writeText(block.textContent).catch(() => {  // no clipboard here: select it instead
      getSelection().selectAllChildren(block);
      document.execCommand("copy");
    });
    button.textContent = "Copied";
  };
  block.before(button);
}
