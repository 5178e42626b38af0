/** Images from outside: dropped, pasted or chosen. */

import { upload } from "./api.js";
import { byId } from "./elements.js";
import { complain } from "./notices.js";

/**
 * Listen for files; while the page takes none, say so.
 * @param {object} how
 * @param {() => string|null} how.invitation what dropping does now; null: nothing can be dropped
 * @param {(files: File[]) => void} how.take
 * @returns {() => void} opens the file chooser
 */
export function listenForFiles({ invitation, take }) {
  const sign = byId("dropping");
  const chooser = byId("file");
  let depth = 0; // of entered elements: each child entered or left is told as well

  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  const accept = (list) => {
    const files = [...list];
    if (!files.length) return;
    if (invitation() === null) complain("This index was made of vectors: images cannot be uploaded.");
    else take(files);
  };

  document.addEventListener("dragenter", (event) => {
    if (!holdsFiles(event) || invitation() === null) return;
    depth += 1;
    sign.firstElementChild.textContent = invitation();
    sign.hidden = false;
  });
  document.addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (!depth) sign.hidden = true;
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    sign.hidden = true;
    if (event.dataTransfer.files.length) accept(event.dataTransfer.files);
    else complain("That is no file. Save the image first, or copy and paste it.");
  });
  document.addEventListener("paste", (event) => accept(event.clipboardData?.files ?? []));
  chooser.addEventListener("change", () => {
    accept(chooser.files);
    chooser.value = "";
  });
  return () => chooser.click();
}

/**
 * Upload files; what is wrong with one is shown, the others go on.
 * @param {File[]} files
 * @param {number} largest in bytes
 * @returns {Promise<string[]>} tokens of those that arrived
 */
export async function uploadAll(files, largest) {
  const tokens = [];
  for (const file of files) {
    const name = file.name || "The image";
    if (file.size > largest) {
      const megabytes = (bytes) => `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;
      complain(`${name} is too large: ${megabytes(file.size)}; at most ${megabytes(largest)} can be uploaded.`);
      continue;
    }
    try {
      tokens.push((await upload(file)).upload);
    } catch (error) {
      complain(`${name}: ${error.message}`);
    }
  }
  return tokens;
}
